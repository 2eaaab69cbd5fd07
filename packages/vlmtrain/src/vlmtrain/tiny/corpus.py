"""The text that the tiny vocabularies are trained on, written for this purpose.

It leans on what vision-language sets are made of: questions about pictures, short answers, documents, numbers, JSON,
LaTeX and some words of other scripts. What it lacks is still encoded, byte by byte.
"""

from __future__ import annotations

__all__ = ["CORPUS"]

CORPUS: tuple[str, ...] = (
    "What is shown in this image? Describe the image in detail. Answer the question using a single word or phrase.",
    "Which digit is this? The digit is 7. Which garment is this? The garment is a dress. Which number is written here?",
    "How many people are in the picture? There are two people in the picture. Is there a dog in the image? Yes. No.",
    "What colour is the car on the left? The car on the left is red, and the car on the right is blue.",
    "Read the text in the image. Transcribe the handwriting. Write the formula as LaTeX. Extract the table as JSON.",
    "Is the sentence true or false for this picture? True. False. The statement is correct."
    " The statement is not correct.",
    "The left box has exactly two black squares and one yellow circle. There is a tower with three blocks.",
    "zero one two three four five six seven eight nine ten eleven twelve twenty thirty hundred thousand million",
    "red orange yellow green blue purple pink brown black white grey light dark small large round square long short",
    "shirt dress trousers pullover coat jacket sandal sneaker boot shoe hat bag skirt shorts top outwear polo blouse",
    "dog cat horse bird cow sheep elephant bear zebra person man woman child boy girl car bus truck train boat bicycle",
    "table chair bed window door wall floor street road house tree grass sky water river mountain beach field garden",
    "above below left right behind in front of next to between on under inside outside near"
    " far from the top of the bottom",
    "The patient shows no sign of a fracture. Findings: the lungs are clear. Impression: normal chest radiograph.",
    "Invoice number, date, amount, total, subtotal, tax, due date, customer, address,"
    " quantity, unit price, payment terms.",
    '{"name": "value", "total": 12.50, "date": "2024-01-31", "items": [{"label": "tea",'
    ' "price": 3.20, "quantity": 2}]}',
    '{"bbox_2d": [10, 20, 110, 220], "label": "person"}, {"bbox_2d": [0, 0, 640, 480], "label": "background"}',
    r"\frac{1}{2} \sum_{i=1}^{n} x_i \int_{0}^{1} f(x) dx \alpha \beta \gamma \delta \Delta"
    r" \lambda \sqrt{x} \left( \right)",
    r"a^{2} + b^{2} = c^{2}, \begin{matrix} 1 & 0 \\ 0 & 1 \end{matrix}, \mathrm{d}x, \partial,"
    r" \infty, \leq, \geq, \cdot",
    "You are a helpful assistant. You are an expert radiographer. Describe accurately what you see in this image.",
    "The chart shows the share of the population by year. The value for 2015 is 42%, which is"
    " higher than the value for 2010.",
    "What is the title of this page? What does the sign say? Who wrote this letter? When was it written? Where is it?",
    "A photograph of a quiet street in the evening, with a row of parked cars and the light of a shop on the corner.",
    "A man is riding a horse along the beach while another man walks behind him with a small dog on a lead.",
    "A group of children are playing with a ball in a field, and two women are sitting on the grass near a tree.",
    "This picture was taken from above: it shows a river that runs through the town and three bridges across it.",
    "Der Hund sitzt auf dem Tisch. Die Katze liegt unter dem Stuhl. Was ist auf dem Bild zu sehen? Wie viele sind es?",
    "Le chien est sur la table. Le chat est sous la chaise. Que voit-on dans cette image ? Combien y en a-t-il ?",
    "El perro está sobre la mesa. El gato está debajo de la silla. ¿Qué se ve en la imagen? ¿Cuántos hay?",
    "это изображение показывает дом и дерево. что на картинке? сколько людей на фотографии?",
    "图片中有什么? 图片中有一只狗和一只猫。这张图片上有几个人? 请描述这张图片。",
    "この画像には何が写っていますか? この画像には犬と猫が写っています。文字を読んでください。",
    "I think that the answer would be different if there were more light, but it is not possible to say for certain.",
    "First, look at the picture. Then count the objects. Finally, write the answer in words and in numbers.",
    "The following list gives each label with its probability: cat 0.91, dog 0.07, horse 0.01, other 0.01.",
    "def area(width, height): return width * height  # in pixels\nfor row in rows:\n    print(row)\n",
    "<table><tr><td>1</td><td>2</td></tr></table>\n| a | b |\n|---|---|\n| 1 | 2 |\n# Heading\n- item\n- item\n",
    "Mr. and Mrs. Moore moved to London in 1924; their eldest daughter, who was then nineteen, stayed with her aunt.",
    "He said that the government would not be able to meet the demands of the union before the end of the year.",
    "It was the first time that the prime minister had spoken about the matter in public since the election.",
)
